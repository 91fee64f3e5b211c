"""What else moves when a behaviour is turned: sources, over-refusal, capability, coherence, KL."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
