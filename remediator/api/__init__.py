"""The HTTP server: listener, routes, authentication, and the operators' JSON."""
