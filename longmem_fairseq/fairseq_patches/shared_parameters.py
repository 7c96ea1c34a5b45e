"""The parameters that modules share.

fairseq's trainer looks for them, because moving a model to a device may separate them. It takes missing
parameters, such as the bias of a layer without one, for one parameter that all these layers share:
"detected shared parameter: ..." in the log for each of them, hundreds in a converted model.
"""

from typing import Dict, List

from torch import nn


def shared_parameters(module: nn.Module) -> List[List[str]]:
    """The names of every parameter that has several."""
    names: Dict[nn.Parameter, List[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [group for group in names.values() if len(group) > 1]
