from .contents import Contents as Contents
from .page import page as page
from .write import gather as gather, write_report as write_report
