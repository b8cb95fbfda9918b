-- What shoppers do. Each block is one transaction; a client picks a block by weight, draws its
-- arguments, calls it on its node, waits for the answer, thinks, and picks the next.

-- name: buy
-- weight: 5
-- args: sku = zipf(1..3), pieces = int(1..2), order = uuid(), node = node()
-- The first statement takes the pieces if there are enough; the second writes the order if it did.
UPDATE stock SET quantity = quantity - :pieces WHERE sku = :sku AND quantity >= :pieces;
INSERT INTO orders (id, sku, quantity, taken_at)
  SELECT :order, :sku, :pieces, :node WHERE changes() > 0;

-- name: look
-- args: sku = zipf(1..3)
SELECT name, price, quantity FROM products JOIN stock USING (sku) WHERE sku = :sku;
