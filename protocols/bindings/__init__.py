"""CloudEvents in the forms that several front-ends share: JSON, and attributes as text headers."""
