"""Does a calibration on one source of prompts hold for others: its plane, its sites, its dial?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
