"""Errors for clients, in OpenAI's format."""

from typing import Dict, Optional


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        message: one line
        status: of HTTP
        param: the field of the request that it is about
        code: for programs
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: Optional[str] = None,
        code: Optional[str] = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> Dict:
        """The answer's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}
