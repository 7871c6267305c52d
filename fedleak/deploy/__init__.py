"""Machines: certificates, services, and one folder for each of them."""
