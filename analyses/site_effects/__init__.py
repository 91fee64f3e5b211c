"""Which site does it? One site steered at a time, and all sites but one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
