"""The engine's one exception type."""


class HarpError(RuntimeError):
    """The engine refused something or failed.

    Attributes:
        code: for programs: ``invalid_option``, ``invalid_batch``, ``unsupported_model``, ``unsupported_call``,
            ``context_full``, ``aborted``, ``decode_failed``, ``invalid_state``, ``invalid_input`` or ``io``
            (``include/harp/error.h``).
    """

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code

    def __reduce__(self):  # exceptions are pickled between processes
        return type(self), (str(self), self.code)
