from .conclusions import findings as findings
from .figures import plane_figure as plane_figure, site_figure as site_figure
from .measures import Stability as Stability, measure as measure
