"""What end-to-end tests are made with: real servers, real nodes, and a client that says exactly what it is told to.

Everything is started through a `Site` (the fixtures `site` and `module_site`), which ends it with the test.
"""
