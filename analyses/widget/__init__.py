"""A dial in the notebook: turn the angle and read the answer, of a model or of a stored sweep."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
