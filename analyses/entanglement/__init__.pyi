from .conclusions import findings as findings
from .figures import (
    angle_figure as angle_figure,
    figure as figure,
    front_figure as front_figure,
)
from .front import front as front
from .matrix import matrix as matrix
from .measures import Asked as Asked, measure as measure
