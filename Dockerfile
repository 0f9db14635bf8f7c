# CPU:  docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t dynpose .
#       docker run --stop-timeout 45 -p 8000:8000 dynpose        (SHUTDOWN_GRACE_S is 35, docker's own patience 10)
# CUDA: docker build -t dynpose .        (PyPI's torch brings the CUDA libraries; the host needs the driver and
#       docker run --gpus all --stop-timeout 45 -p 8000:8000 dynpose        the NVIDIA container toolkit)
# Either: --build-arg EXTRAS="onnx onnxruntime" for nets in ONNX files, "fastapi[opentelemetry]" for traces.
FROM python:3.11-slim-bookworm

# opencv-python, which ultralytics needs, loads these two system libraries; slim images lack them.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /srv/dynpose
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 PORT=8000

# Dependencies before source: a change of code does not install them again.
ARG TORCH_INDEX=
COPY requirements requirements
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r requirements/torch.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/serve.txt \
    && pip check
ARG EXTRAS=
RUN if [ -n "$EXTRAS" ]; then pip install --no-cache-dir $EXTRAS && pip check; fi

COPY LICENSE README.md pyproject.toml ./
COPY models models
COPY calibration calibration
COPY app app
# chmod: weights just trained are readable by their maker alone.
RUN chmod -R a+rX . \
    && python -m compileall -q app models calibration \
    && useradd --system --no-create-home --shell /usr/sbin/nologin dynpose \
    && install -d -o dynpose state

# The bundled networks, converted for OpenVINO once and for any CPU: the user below has no place to keep them, and would
# convert them at each start.
ENV DYNPOSE_CACHE=/srv/dynpose/cache
RUN python -c "import torch; from models.zoo import load_pair; load_pair('embedded', torch.device('cpu'), torch.float32)" \
    && chmod -R a+rX cache

# The service writes nothing of its own but STATE_FILE, where that is set; state/ is a place for it.
USER dynpose
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['PORT'] + '/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
# Exec form: python itself gets SIGTERM, answers what it has accepted, and ends.
CMD ["python", "-m", "app"]
