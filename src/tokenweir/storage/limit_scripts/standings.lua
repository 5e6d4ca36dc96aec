-- How buckets stand; nothing is changed. ARGV: buckets. Answers of each whether it is known, what is used, what is held.

local buckets, keys, reply = read_buckets(ARGV[4], 1), {}, {}
for i, bucket in ipairs(buckets) do keys[i] = prefix .. 'b:' .. bucket.id end
if #keys == 0 then return reply end
for i, raw in ipairs(call('MGET', unpack(keys))) do
  local bucket, s = buckets[i], read_state(raw)
  if not s or s.kind ~= bucket.kind then s = new_state(bucket, false) end
  if s.kind == LEVEL then leak(s) end
  if bucket.fresh or bucket.kind == GAUGE then s.known = true end
  reply[3 * i - 2], reply[3 * i - 1], reply[3 * i] = s.known and 1 or 0, whole(s), s.held
end
return reply
