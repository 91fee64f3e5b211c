from .conclusions import findings as findings
from .figures import figure as figure
from .measures import measure as measure
