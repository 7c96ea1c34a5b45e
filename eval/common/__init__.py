"""What the scripts of eval/ share."""
