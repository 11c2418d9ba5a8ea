"""Knowledge stores: documents and their vectors."""
