from .page import page as page
from .verdicts import Verdict as Verdict, verdicts as verdicts
