-- Run once, at the origin, as one transaction. Clients and faults begin when every node has it.
INSERT INTO products (sku, name, price) VALUES
  (1, 'lighthouse lamp', 4900), (2, 'sea salt', 350), (3, 'driftwood frame', 1900);
INSERT INTO stock (sku, quantity) VALUES (1, 3), (2, 5), (3, 4);
