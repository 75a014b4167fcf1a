"Small trained models that come with the package, each a folder with its model card."
from pathlib import Path

FOLDER = Path(__file__).parent
