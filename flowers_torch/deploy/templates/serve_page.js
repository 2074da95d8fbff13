// The server classifies: each photo is one request to /api/predict.
const MAX_TRIES = 30; // while the server is busy, one a second

async function request(file, name, query) {
  if (file.size > model.image_bytes) {
    throw new Error(`larger than ${Math.round(model.image_bytes / 2 ** 20)} MB, the most that this server takes`);
  }
  const form = new FormData();
  form.append("photo", file, name);
  for (let tries = 0; ; tries += 1) {
    let response;
    try {
      response = await fetch(`/api/predict?${query}`, { method: "POST", body: form });
    } catch {
      throw new Error("the server does not respond; is it still running?");
    }
    if (response.status === 503 && tries < MAX_TRIES) {
      await new Promise(done => setTimeout(done, 1000));
      continue;
    }
    const body = await response.json().catch(() => ({}));
    const [prediction] = body.predictions ?? [{ error: body.error || `the server responded with ${response.status}` }];
    if (prediction.error) throw new Error(prediction.error);
    return prediction;
  }
}

start({
  parallel: 4,
  async classify(file, name) {
    const { classes, reason } = await request(file, name, `top=${model.classes.length}`);
    return { classes, isUnlike: reason === UNLIKE };
  },
  async explain(file, name) {
    const prediction = await request(file, name, "top=1&gradcam=1");
    if (!prediction.gradcam) throw new Error(prediction.no_gradcam);
    return prediction.gradcam;
  },
});
