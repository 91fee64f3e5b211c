"""Does a gate leave alone what should be left alone, and steer what should be steered?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
