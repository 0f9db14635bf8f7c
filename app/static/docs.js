// Swagger UI, which FastAPI would load from elsewhere and start with a script inside its page.
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null });
