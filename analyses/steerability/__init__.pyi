from .conclusions import findings as findings
from .figures import figure as figure
from .measures import measure as measure, summarise as summarise
from .questions import (
    Question as Question,
    contrast as contrast,
    read_questions as read_questions,
    score_questions as score_questions,
)
from .surface import explained as explained, surface_of as surface_of
from .transfer import transfer as transfer
