from .conclusions import findings as findings
from .figures import figure as figure, geometry_figure as geometry_figure
from .geometry import compare as compare
from .measures import measure as measure
