"""An HTTP endpoint with FastAPI that many threads answer; the body of a request is a photo.

pip install fastapi uvicorn && uvicorn --app-dir examples endpoint:app
curl --data-binary @rose.jpg http://127.0.0.1:8000/predict
"""

from typing import Annotated

from fastapi import Body, FastAPI, HTTPException

from flowers_torch import Classifier, FlowersError

app, classifier = FastAPI(), Classifier.load("latest")


@app.post("/predict")
def predict(image: Annotated[bytes, Body(media_type="application/octet-stream")]) -> dict:
    try:
        return classifier(image, top=1).to_dict()
    except FlowersError as error:
        raise HTTPException(422, str(error)) from error
