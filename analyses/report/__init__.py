"""One self-contained page of a run or a sweep: the verdict, the dial, and what they rest on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
