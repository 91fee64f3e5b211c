"""Do the claims of arXiv 2601.19375 hold on a model? Figures, verdicts and a page of results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
