"""Which operators keep the norm: by mathematics, and in the arithmetic that is used for them?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
