"""What all tests share: the fixtures that start real servers."""

pytest_plugins = [
    "tests.monitoring_fixtures",
    "tests.postgres_fixtures",
    "tests.service_fixtures",
    "tests.store_fixtures",
]
