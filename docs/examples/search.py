"""The images of a collection that are most like a picture, by the embeddings of a run."""

import sys
from pathlib import Path

import pyarrow.parquet
import torch
from PIL import Image
from torch.nn import functional as F

import ofqctl

run, collection, picture = sys.argv[1:4]
table = pyarrow.parquet.read_table(collection)
names = table["image"].to_pylist()
embeddings = F.normalize(torch.tensor(table["embedding"].to_pylist()), dim=1)

model = ofqctl.load(run)
with torch.inference_mode():
    query = F.normalize(model(model.preprocess(Image.open(picture).convert("RGB")).unsqueeze(0)), dim=1)
cosines, places = (embeddings @ query[0]).topk(min(5, len(names)))
for cosine, place in zip(cosines.tolist(), places.tolist(), strict=True):
    print(f"{cosine:.3f}  {Path(names[place]).name}")
