"""Does steering hold over a long conversation, and does the model's state drift meanwhile?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
