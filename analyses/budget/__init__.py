"""Which operator changes refusal most for the same force? A comparison at equal divergence."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
