"""The store as a public format: names, schema, manifest, versions, one reader of row groups. Anywhere."""
