"""Do length and surface form tell the classes apart as well as the activations do?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
