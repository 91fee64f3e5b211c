"""How far can a calibration be trusted? Other prompts, fewer prompts, and shuffled labels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
