// Shows the OpenAPI document of this server. Nothing is asked of anybody else: there is no validator's badge.
SwaggerUIBundle({
  url: "/api/schema/",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
