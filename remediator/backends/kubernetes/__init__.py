"""Kubernetes: reading a workload, and changing it in bounded ways."""
