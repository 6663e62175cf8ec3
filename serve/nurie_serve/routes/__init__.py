"""The HTTP routes, by what they are about; each module makes a router over the service."""
