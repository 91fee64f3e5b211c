"""How reliably does steering work, prompt by prompt, and which prompts go the wrong way?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
