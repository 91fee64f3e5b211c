"""Are sites that are chosen for each prompt better than as many fixed ones?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
