from .figures import figure as figure
from .measures import measure as measure
from .ways import all_ways as all_ways
