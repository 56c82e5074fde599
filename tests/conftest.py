"""What all tests share: the fixtures that start real servers."""

pytest_plugins = [
    # first: the others import it
    "tests.postgres_fixtures",
    "tests.redis_fixtures",
    "tests.kubernetes_fixtures",
    "tests.monitoring_fixtures",
    "tests.service_fixtures",
    "tests.store_fixtures",
    "tests.monitored_shop",
]
