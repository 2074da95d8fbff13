"""Embeds the photos of a folder and prints the nearest neighbors of the first ones.

python examples/neighbors.py
"""

from torch.nn.functional import normalize

from flowers_torch import Classifier
from flowers_torch.deploy.inputs import find_files

files = find_files(["my_photos"])[:1000]
vectors = normalize(Classifier.load("latest").embed(files))
similarity = (vectors @ vectors.T).fill_diagonal_(-1)
for place, nearest in enumerate(similarity[:10].topk(3).indices.tolist()):
    print(files[place], *(f"{files[i]} ({similarity[place, i]:.2f})" for i in nearest))
