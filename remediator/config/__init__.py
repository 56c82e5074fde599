"""The YAML file and the environment, as settings and the catalog of services."""
