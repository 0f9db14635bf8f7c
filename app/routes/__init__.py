"""HTTP routes, one module each."""

from app.routes import config, health, metrics, page, pose

routers = [pose.router, config.router, health.router, metrics.router, page.router]
