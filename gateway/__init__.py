"""What makes a running node of the parts: settings, composition, security, metrics, command line."""
