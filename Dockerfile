# The service in an image: `docker build -t remediator .`, and for the demo `--build-arg EXTRAS=demo`.
# Needs no BuildKit, and of the base image nothing but Python 3.11 or newer with venv.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ARG EXTRAS=
WORKDIR /source
COPY . .
RUN python3 -m venv /tools \
 && python3 -m venv --without-pip /opt/remediator \
 && /tools/bin/pip wheel --no-cache-dir --no-deps --quiet --wheel-dir /wheels . \
 && set -- /wheels/*.whl \
 && /tools/bin/pip --python /opt/remediator/bin/python install --no-cache-dir --no-compile --quiet \
      -c constraints.txt "$1${EXTRAS:+[$EXTRAS]}" \
 && /opt/remediator/bin/python -m compileall -q /opt/remediator/lib \
 && mkdir -p /empty/var/lib/remediator

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="remediator" \
      org.opencontainers.image.description="Event-driven alert remediation: diagnose, make one bounded change, check that it helped, explain." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN echo 'remediator:x:10001:' >>/etc/group \
 && echo 'remediator:x:10001:10001::/tmp:/usr/sbin/nologin' >>/etc/passwd
COPY --from=build /opt/remediator /opt/remediator
COPY --from=build --chown=10001:10001 /empty/var/lib/remediator /var/lib/remediator
ENV PATH=/opt/remediator/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    REMEDIATOR_LISTEN=0.0.0.0:8080 \
    REMEDIATOR_STATE_DIR=/var/lib/remediator/state
USER 10001:10001
WORKDIR /var/lib/remediator
VOLUME /var/lib/remediator
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python3", "-c", \
    "import os, urllib.request; port = os.environ['REMEDIATOR_LISTEN'].rpartition(':')[2]; \
    urllib.request.urlopen(f'http://127.0.0.1:{port}/healthz', timeout=4)"]
ENTRYPOINT ["remediator"]
CMD ["serve"]
