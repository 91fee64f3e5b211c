from .figures import figure as figure, token_figure as token_figure
from .measures import measure as measure
