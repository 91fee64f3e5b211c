from .figures import figure as figure
from .measures import measure as measure
