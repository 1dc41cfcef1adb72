"""JSON Web Tokens: those that others sign, those of services, and those that the server signs itself."""
