# chexspark with all that it needs, for driver and executors: docker build [--build-arg SETUP="--gpu"] .
# The steps are build.sh's. It was not built where chexspark is developed: no Docker engine is there.
FROM python:3.11-slim-bookworm
# build.sh installs Java 17 and a C++17 compiler here, and Horovod is built by it.
ARG SETUP=""
WORKDIR /opt/chexspark
COPY build.sh pyproject.toml setup.py README.md LICENSE ./
COPY conf conf/
COPY jobs jobs/
COPY chexspark chexspark/
RUN ./build.sh setup $SETUP && rm -rf /root/.cache
# Spark's pods on Kubernetes run as this user; Hadoop asks for its name.
RUN useradd --uid 185 --create-home spark
ENV PATH=/opt/chexspark/.venv/bin:$PATH SPARK_HOME=/opt/chexspark/.venv/lib/python3.11/site-packages/pyspark
ENTRYPOINT ["/opt/chexspark/conf/clusters/kubernetes/entrypoint.sh"]
